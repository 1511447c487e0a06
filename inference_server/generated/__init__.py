"""Messages of the Open Inference Protocol, made by `python -m inference_server.generate`; not edited by hand."""
