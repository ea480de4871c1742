"""Predicted masks in the formats of other annotation tools, as pre-annotations to correct.

`annotations` holds annotated images in memory, and a module per format builds its content from them, without files.
`results` collects the images of a result file, `image_files` finds and places their pictures, `writer` writes a folder.

Does not know models; torch is not imported.
"""
