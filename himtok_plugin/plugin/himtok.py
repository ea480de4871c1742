"""The file that ms-swift imports for `--plugin himtok` (or natively, `--external_plugins .../plugin/himtok.py`).

Contract: importing it registers everything with ms-swift, once, however often and under whatever module name it is
imported. It is alone in its folder, which has no `__init__.py`: ms-swift puts the folder of an external plugin first on
`sys.path`, so a sibling called `datasets` or `tokenizers` would shadow the real package.
Does not know: what is registered.
"""

from himtok_plugin.swift_integration.register import register

register()
