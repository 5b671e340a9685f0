"""The only room that knows file formats and transforms: specs, readers, preprocessing, cache, loader, made-up data.

Nothing is imported here, so that ``import medmae.data.spec`` stays quick; import the module you need.
"""
