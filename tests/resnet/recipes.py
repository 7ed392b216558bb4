"""Parts of torchdistill configurations on the digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchvision.models import resnet18

Command = Callable[..., int]  # the command line as a function: text, flags, name -> exit code
DATA = """
dependencies: [resnet.extension]
datasets:
  digits/train: !import_call
    key: resnet.extension.Digits
    init: {kwargs: {split: train, per_class: 3, transform: &transform !import_call {
      key: torchvision.transforms.Compose, init: {args: [[
        !import_call {key: torchvision.transforms.RandomResizedCrop, init: {kwargs: {size: 32}}},
        !import_call {key: torchvision.transforms.ToTensor}]]}}}}
  digits/val: !import_call
    key: resnet.extension.Digits
    init: {kwargs: {split: train, per_class: 2, transform: !import_call {
      key: torchvision.transforms.Compose, init: {args: [[
        !import_call {key: torchvision.transforms.Resize, init: {kwargs: {size: 32}}},
        !import_call {key: torchvision.transforms.ToTensor}]]}}}}
"""
FEW, ALL = "{split: train, per_class: 2,", "{split: val,"  # images that are measured on
LOADERS = """
  num_epochs: 2
  train_data_loader:
    dataset_id: digits/train
    sampler: {class_or_func: !import_get {key: torch.utils.data.RandomSampler}}
    kwargs: {batch_size: 10, num_workers: 0}
  val_data_loader: &val
    dataset_id: digits/val
    sampler: {class_or_func: !import_get {key: torch.utils.data.SequentialSampler}}
    kwargs: {batch_size: 250, num_workers: 0}
  optimizer: {key: SGD, kwargs: {lr: 0.02, momentum: 0.9, weight_decay: 1e-4}}
  scheduler: {key: MultiStepLR, kwargs: {milestones: [1], gamma: 0.1}}
"""
CE = """
        ce:
          criterion: {key: CrossEntropyLoss, kwargs: {reduction: mean}}
          criterion_wrapper:
            key: SimpleLossWrapper
            kwargs:
              input: {is_from_teacher: false, module_path: '.', io: output}
              target: {uses_label: true}
          weight: 1.0
"""
TEST = "\ntest: {test_data_loader: *val}\nrun: {log_every: 1}\n"
PAIR = """
models:
  teacher_model: {{key: resnet34, kwargs: {{num_classes: 10}}, src_ckpt: {teacher}}}
  student_model: {{key: resnet18, kwargs: {{num_classes: 10}}, dst_ckpt: {folder}/runs/student.pt}}
"""
OURS = """
  teacher: {forward_proc: forward_batch_only, forward_hook: {output: [layer4]}, requires_grad: false}
  student:
    auxiliary_model_wrapper:
      key: SimpleRecipeWrapper
      kwargs: {layer: layer4, student_dim: 512, teacher_dim: 512}
    forward_proc: forward_batch_only
    forward_hook: {output: [model.layer4]}
"""
OURS_LOSS = """
        srd:
          criterion: {key: SimpleRecipeCriterion, kwargs: {teacher_layer: layer4}}
          weight: 1.0
"""
CRITERION = """
  criterion:
    key: WeightedSumLoss
    kwargs:
      sub_terms:
"""


def plain_student() -> torch.nn.Module:
    """torchvision's ResNet-18 for ten classes."""
    return resnet18(num_classes=10)
