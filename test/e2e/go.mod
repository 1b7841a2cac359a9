module github.com/gpu-agent/gpu-agent/test/e2e

go 1.27.4

require github.com/stretchr/testify v1.12.1

require go.yaml.in/yaml/v3 v3.0.5 // indirect
