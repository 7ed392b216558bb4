"""The settings that have short names: flags of the command line, keywords of `srd.train`."""

from __future__ import annotations

# name: (configuration field, help)
FLAGS = {
    "model": ("model.name", "tiny, small, base, or any timm model"),
    "preset": ("preset", "small (made for few pictures) or imagenet (the paper's recipe)"),
    "init": ("model.init", "weights to start from: pretrained, a timm tag, a file, a run, hf-hub:"),
    "image-size": ("model.image_size", "pixels, square"),
    "data-path": ("data.path", "folder with train/ and val/, a folder per class in each"),
    "dataset": ("data.dataset", "imagefolder, datasets (Hugging Face), or digits (no files)"),
    "output": ("output", "where runs go: <output>/<name>/"),
    "name": ("name", "of this run's folder"),
    "batch-size": ("train.batch_size", "effective batch size, over all processes"),
    "epochs": ("train.epochs", "passes over the training images"),
    "lr": ("optim.lr", "learning rate, for optim.lr_batch images"),
    "warmup-epochs": ("optim.warmup_epochs", "epochs in which the learning rate rises"),
    "seed": ("seed", "of everything random"),
    "device": ("device", "auto, cpu or cuda"),
    "workers": ("data.workers", "loader processes for each training process"),
    "teacher": ("teacher.name", "a timm model"),
    "teacher-checkpoint": ("teacher.checkpoint", "its weights"),
    "teacher-cache": ("cache.path", "folder: record what the teacher says, replay what is there"),
    "distillation": (
        "distill.loss.name",
        "a loss: srd (the paper), vkd, kd (logits only), none, dkd, dist, kd_ls, fitnet, at, ickd, crd",
    ),
    "resume": ("resume", "auto (go on where the run was), none, or a checkpoint file"),
    "track": ("track", "wandb, mlflow or trackio: send the run's curves there"),
    "amp": ("amp", "auto, off, bf16, fp16 (or fp64, for proofs)"),
}

# flags without a value, which turn a field on
SWITCHES = {
    "compile": ("compile", "torch.compile teacher and student"),
    "extend": ("extend", "go on with a run under other settings"),
    "slim": ("slim", "when it is done, remove the run's checkpoints"),
    "unlabelled": ("data.unlabelled", "pictures without classes: the teacher alone teaches"),
}
