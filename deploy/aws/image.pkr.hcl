# An image on which install.sh has run: `packer init deploy/aws && packer build -var role=gpu deploy/aws`, from the project.
# Its id goes into cluster.yaml as the node type's ImageId, its region is provider.region. It holds no token and no key.

packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = "~> 1"
    }
  }
}

variable "role" {
  type    = string
  default = "gpu" # or cpu, for head and decode
}

variable "region" {
  type    = string
  default = "us-east-1"
}

locals {
  bases = {
    gpu = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
    cpu = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
  }
  types = { gpu = "g5.xlarge", cpu = "m7i.xlarge" }
}

data "amazon-parameterstore" "base" {
  name   = local.bases[var.role]
  region = var.region
}

source "amazon-ebs" "raymat" {
  ami_name      = "raymat-${var.role}-{{timestamp}}"
  region        = var.region
  source_ami    = data.amazon-parameterstore.base.value
  instance_type = local.types[var.role]
  ssh_username  = "ubuntu"

  launch_block_device_mappings {
    device_name           = "/dev/sda1"
    volume_size           = var.role == "gpu" ? 100 : 60
    volume_type           = "gp3"
    delete_on_termination = true
  }
}

build {
  sources = ["source.amazon-ebs.raymat"]

  provisioner "shell" {
    inline = ["mkdir -p ~/raymat/deploy"]
  }

  provisioner "file" {
    sources     = ["raymat", "jobs", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"]
    destination = "/home/ubuntu/raymat/"
  }

  provisioner "file" {
    source      = "deploy/node"
    destination = "/home/ubuntu/raymat/deploy/"
  }

  provisioner "shell" {
    inline = ["bash ~/raymat/deploy/node/install.sh ${var.role}"]
  }
}
