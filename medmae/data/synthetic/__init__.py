"""A synthetic cohort: four-sequence brain MRI with tumors, labels, masks and a clinical table, made from a seed.

For demonstrations and tests where no patient data may be used. Correlations between sequences, and how well one can be
predicted from the others voxel by voxel, are those of real data; anatomy, pathology and artifacts are far simpler, so
scores measured on it overstate what to expect of patients.
"""
