"""How good a reconstruction is: metrics, baselines, a protocol over all subsets, confidence intervals, tables.

It works on arrays and callables and knows no file format, so the same numbers come out of a notebook, the command line
and the demo.
"""
