"""`glm4 export --to openvino`: a model as OpenVINO's intermediate representation, written without torch."""
