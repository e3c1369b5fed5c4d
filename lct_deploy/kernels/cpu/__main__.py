"""Says whether the operators for onnxruntime on the CPU were built."""

from lct_deploy.kernels.cpu import op_library

if __name__ == "__main__":
    found = op_library()
    print(f"CPU operators: {found or 'not built (no C++ compiler, such as g++): standard operators serve'}")
