"""OpenVINO as a backend: models that `glm4 export --to openvino` wrote, on Intel's CPUs and GPUs."""
