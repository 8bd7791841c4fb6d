"""Text with a known truth: rows drawn from a model whose likelihood is exact.

rows.py   rows of a split, drawn and written so that a killed command goes on
"""
