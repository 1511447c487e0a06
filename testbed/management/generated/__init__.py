"""Messages of the management plane, made by `python -m testbed.management.generate`; not edited by hand."""
