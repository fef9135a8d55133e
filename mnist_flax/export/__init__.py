"""Write a trained network for other programs: `python -m mnist_flax.export --workdir exp1 --format onnx --out FILE`."""
