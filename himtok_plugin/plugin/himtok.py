"""The file that ms-swift imports for `--plugin himtok` (or natively, `--external_plugins .../plugin/himtok.py`).

Contract: importing it registers the plugin with ms-swift, once, also if it is imported again under another name. It is
alone in its folder, which has no `__init__.py`: ms-swift puts the folder of an external plugin first on `sys.path`, so
a sibling named `datasets` or `tokenizers` would shadow the real package.
"""

from himtok_plugin.swift_integration.register import register

register()
