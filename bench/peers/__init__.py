"""Other engines on the bundled pair: vLLM, OpenVINO GenAI and llama.cpp, each in an environment of its own."""
