"""STUB by the lead."""
def clean(text): return str(text)
