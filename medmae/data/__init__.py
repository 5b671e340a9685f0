"""The only room that knows file formats and MONAI: specs, cohorts, readers, preprocessing, cache, loader, synthetic data.

Nothing is imported here, so that ``import medmae.data.spec`` stays quick; import the module you need.
"""
