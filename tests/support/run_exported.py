"""Runs an exported network with nothing but its runtime and prints its outputs' digests; needs no raymat, and for ONNX no torch.

python -I run_exported.py FILE HEIGHT WIDTH
"""

import hashlib
import json
import sys


class Refuse:
    """No raymat in this process, wherever it may be installed."""

    def __init__(self, *names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is not here")


def pictures(names, height, width):
    """Some made-up pictures: name to (1, 3, height, width) float32 in 0..1, as numpy."""
    import numpy

    count = 3 * height * width
    found = {}
    for place, name in enumerate(names):
        values = (numpy.arange(count) * (37 + 12 * place) % 101).astype(numpy.float32) / 101
        found[name] = values.reshape(1, 3, height, width)
    return found


def main():
    path, height, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with open(path + ".json", encoding="utf-8") as file:
        told = json.load(file)
    sys.meta_path.insert(0, Refuse("raymat", *(["torch"] if told["format"] == "onnx" else [])))
    given = pictures([one["name"] for one in told["inputs"]], height, width)
    names = [one["name"] for one in told["outputs"]]
    if told["format"] == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert [one.name for one in session.get_outputs()] == names
        outputs = session.run(names, given)
    else:
        import torch

        torch.set_num_threads(1)
        module = torch.jit.load(path)
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(array) for array in given.values()))
        outputs = [tensor.contiguous().numpy() for tensor in outputs]
    for name, array in zip(names, outputs, strict=True):
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        print(name, list(array.shape), digest)
    assert not any(name.split(".")[0] == "raymat" for name in sys.modules)


if __name__ == "__main__":
    main()
