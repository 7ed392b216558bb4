# ruff: noqa: E501 (a case is a line)
"""Configurations that try to run something, read something or write somewhere, and harmless ones."""

from __future__ import annotations

from tests.resnet.recipes import CE, CRITERION, LOADERS, OURS, OURS_LOSS, TEST

REST = "\ndatasets: {}\nmodels: {}\ntrain: {}\ntest: {}\n"
# Small enough to be read a thousand times.
DATA = """
dependencies: [resnet.extension]
datasets:
  digits/train: &data !import_call
    key: torchvision.datasets.FakeData
    init: {kwargs: {size: 8, num_classes: 10, transform: !import_call {
      key: torchvision.transforms.Compose, init: {args: [[
        !import_call {key: torchvision.transforms.Resize, init: {kwargs: {size: 32}}},
        !import_call {key: torchvision.transforms.ToTensor}]]}}}}
  digits/val: *data
models:
  teacher_model: {key: resnet34, kwargs: {num_classes: 10}, src_ckpt: teacher.pth}
  student_model: {key: resnet18, kwargs: {num_classes: 10}, dst_ckpt: student.pt}
train:"""
RECIPE = DATA + LOADERS + OURS + CRITERION + CE + OURS_LOSS + TEST
ALLOWED = [
    "!import_get {key: torch.utils.data.RandomSampler}",
    "!import_call {key: Resize, package: torchvision.transforms, init: {args: [8]}}",
    "!import_call {key: torchvision.transforms.ToTensor, init: null}",
    "!join [a, b]",
    "!import_get {key: torch.float32}",
    "!import_call {key: torchvision.transforms.v2.ToDtype, init: {args: [!import_get "
    "{key: torch.float32}], kwargs: {scale: true}}}",
    "!import_call {key: torchvision.transforms.Resize, init: {kwargs: {size: 8, interpolation: !getattr "
    "[!import_get {key: torchvision.transforms.InterpolationMode}, BICUBIC]}}}",
    "!import_call {key: timm.data.create_transform, init: {kwargs: {input_size: 32, is_training: true, "
    "auto_augment: rand-m9-mstd0.5-inc1, re_prob: 0.25, re_mode: pixel}}}",
    "!access_by_index_or_key {index_or_key: 1, data: !import_call {key: torchdistill.datasets.util."
    "split_dataset, init: {kwargs: {lengths: [7, 3], generator_seed: 1, dataset_id: any text, "
    "sub_splits_configs: [{}, {transform: !import_call {key: torchvision.transforms.ToTensor}}], "
    "dataset: !import_call {key: torchvision.datasets.FakeData, init: {kwargs: {size: 10}}}}}}}",
    "!access_by_index_or_key {data: [1, 2], index_or_key: 1}",
    "{<<: {a: 1}, b: 2}",
]
CASE_22 = """
datasets:
  i: &i !import_call {key: timm.optim.OptimInfo, init: {kwargs: {name: x, opt_class: timeit.timeit, defaults: {setup: "open('OWNED','w')", number: 1}}}}
  f: &f !import_call_method {package: timm.optim, class_name: OptimizerRegistry, method_name: get_optimizer_class, init: {args: [!import_call {key: timm.optim.OptimizerRegistry}, *i]}}
  g: !import_call_method {package: torch.nn, class_name: Module, method_name: apply, init: {args: [!import_call {key: torch.nn.Identity}, *f]}}
models: {}
train: {}
test: {}
"""
CASE_22_FX = """
datasets:
  s: &s !import_call {key: torch.nn.Sequential}
  a: !call_method {obj: *s, method_name: add_module, args: ['x" + (str(getattr(__import__("os"),"system")("touch OWNED"))) + "', !import_call {key: torch.nn.Identity}]}
  b: !call_method {obj: *s, method_name: add_module, args: [y, !import_call {key: torch.nn.Identity}]}
  f: !import_call {key: torchvision.models.feature_extraction.create_feature_extractor, init: {args: [*s, {y: y}]}}
models: {}
train: {}
test: {}
"""
HOSTILE = [
    "!import_call {key: os.system, init: {args: ['touch OWNED']}}",
    "!import_call {key: system, package: os, init: {args: ['touch OWNED']}}",
    "!import_get {key: os, package: torch}",
    "!import_get {key: torchvision.datasets.folder.os.system}",
    "!import_get {key: torchvision.datasets.folder.os}",
    "!import_call {key: torch.hub.load, init: {args: [REPO, model], kwargs: {source: local}}}",
    "!import_call {key: torch.load, init: {args: [EVIL], kwargs: {weights_only: false}}}",
    "!import_call {key: torch.jit.load, init: {args: [EVIL]}}",
    "!import_call {key: torch.compile, init: {kwargs: {backend: os.system}}}",
    "!import_call {key: torch.package.PackageImporter, init: {args: [EVIL]}}",
    "!import_call {key: torch.utils.cpp_extension.load_inline, init: {args: [x, y]}}",
    "!import_call {key: torchvision.datasets.utils.download_url, init: {args: [x]}}",
    "!import_call {key: srd.export.hub.push, init: {args: [OWNED, a/b]}}",
    "!import_call {key: srd.export.folder.appearing, init: {args: [OWNED]}}",
    "!import_get {key: srd.export.classifier.open_classifier}",
    "!import_get {key: resnet.export.describe}",
    "!import_get {key: resnet.extension.UserError}",
    "!import_call {key: resnet.extension.SimpleRecipeCriterion, init: {args: [layer4]}}",
    "!import_call {key: srd.run.lock.Claim, init: {args: [OWNED]}}",
    "!import_call {key: builtins.eval, init: {args: ['1']}}",
    "!import_call {key: functools.partial, init: {args: [os.system]}}",
    "!import_call {key: torch.optim.lr_scheduler.partial, init: {args: [os.system, touch OWNED]}}",
    "!import_call {key: torchdistill.common.main_util.import_call, init: {args: [os.system]}}",
    "!import_call {key: torchdistill.common.file_util.load_pickle, init: {args: [EVIL]}}",
    "!import_call {key: torchdistill.models.registry.get_model, "
    "init: {args: [model, REPO], kwargs: {source: local}}}",
    "!import_call {key: subprocess.run, init: {args: [['touch', OWNED]]}}",
    "!import_call {key: !join [os, .system], init: {args: ['touch OWNED']}}",
    "!import_call {<<: {key: os.system}, init: {args: ['touch OWNED']}}",
    "!import_call {<<: [{init: {args: ['touch OWNED']}}, {key: os.system}]}",
    "!import_call {key: torch.nn.modules.module.torch.os.system, init: {args: ['touch OWNED']}}",
    "!import_call {key: '', package: os.system}",
    "!import_call {key: [os.system]}",
    "!import_call {key: {a: b}, package: 3}",
    "!import_call [os.system, 'touch OWNED']",
    "!import_call os.system",
    "!import_call_method {package: os.path.join}",
    "!import_call_method {package: torch.nn, class_name: os, method_name: system}",
    "!import_call_method {package: timm.optim, class_name: OptimizerRegistry, method_name: list_optimizers}",
    "!call_method {obj: x, method_name: __class__}",
    "!setattr [!import_get {key: torch.utils.data.RandomSampler}, __iter__, x]",
    "!!python/object/apply:os.system ['touch OWNED']",
    "!!python/name:os.system ''",
    "!!python/tuple [a]",
    "{!import_get {key: os.system}: x}",
    "{!join [a, b]: x}",
    # Objects lead to others.
    "!getattr [!import_get {key: torch.nn.Module}, __subclasses__]",
    "!getattr [x, !join [__, class__]]",
    "!getattr [!import_get {key: torchvision.models.ResNet18_Weights}, __init__]",
    "!getattr [!import_get {key: torchvision.models.ResNet18_Weights}, mro]",
    "!getattr [!import_get {key: torch.utils.data.RandomSampler}, __iter__]",
    "!getattr [!getattr [!import_get {key: torch.utils.data.RandomSampler}, __init__], __globals__]",
    "!getattr [!import_call {key: torchvision.transforms.ToTensor}, __class__]",
    "!getattr [!getattr [!import_get {key: torchvision.models.ResNet18_Weights}, IMAGENET1K_V1], value]",
    "!getattr [!import_get {key: torchvision.models.ResNet18_Weights}]",
    "!access_by_index_or_key {data: !import_get {key: torchdistill.datasets.registry.DATASET_DICT}, "
    "index_or_key: LSUN}",
    "!access_by_index_or_key {data: !import_get {key: torchvision.models.ResNet18_Weights}, "
    "index_or_key: IMAGENET1K_V1}",
    "!access_by_index_or_key {data: [1], index_or_key: 3}",
    "!join [!import_call {key: torchvision.transforms.ToTensor}, x]",
    "!expanduser [~]",
    # Allowed names, with arguments that are not theirs.
    "!import_call {key: torchvision.datasets.LSUN}",
    "!import_get {key: torchvision.datasets.ImageFolder}",
    "!import_call {key: torchvision.datasets.ImageFolder, init: {kwargs: {root: ., loader: torch.load}}}",
    "!import_call {key: torchvision.datasets.ImageFolder, "
    "init: {kwargs: {root: ., is_valid_file: os.system}}}",
    "!import_call {key: torchvision.datasets.ImageFolder, "
    "init: {args: [., !import_call {key: torchvision.transforms.ToTensor}, null, x]}}",
    "!import_call {key: torchvision.datasets.ImageFolder, init: {kwargs: {root: ., transform: eval}}}",
    "!import_call {key: torchvision.datasets.ImageFolder, "
    "init: {kwargs: {root: ., transform: !import_get {key: torch.utils.data.RandomSampler}}}}",
    "!import_call {key: torchvision.datasets.DatasetFolder, init: {args: [., eval]}}",
    "!import_call {key: torchvision.datasets.EMNIST, init: {kwargs: {root: ., split: ../../x}}}",
    '!import_call {key: torchvision.datasets.EMNIST, init: {kwargs: {root: ., split: mnist, "a\\nb": 1}}}',
    '!import_call {key: "torch\\nload"}',
    "!import_call {key: torchvision.transforms.Lambda, init: {args: [eval]}}",
    "!import_call {key: torchvision.transforms.v2.Lambda, init: {args: [eval]}}",
    "!import_call {key: torchvision.transforms.Compose, init: {args: [[eval, os.system]]}}",
    "!import_call {key: torchvision.transforms.Compose, init: {args: [[/etc/passwd]]}}",
    "!import_call {key: torchvision.transforms.Resize, init: {kwargs: {size: 8, 3: 4}}}",
    "!import_call {key: torchvision.transforms.Resize, init: {kwargs: [1]}}",
    "!import_call {key: torchvision.transforms.Resize, init: {args: {size: 3}}}",
    "!import_call {key: torchvision.transforms.Resize, init: 3}",
    "!import_call {key: torchvision.transforms.Resize}",
    "!import_call {key: timm.create_model, init: {kwargs: {model_name: test_resnet, checkpoint_path: EVIL}}}",
    "!import_call {key: timm.create_model, init: {kwargs: {model_name: test_resnet, pretrained_cfg: "
    "{url: 'http://localhost:1/x'}}}}",
    "!import_call {key: timm.create_model, init: {kwargs: {model_name: test_resnet, pretrained_cfg_overlay: "
    "{file: EVIL}}}}",
    "!import_call {key: timm.create_model, init: {kwargs: {model_name: 'local-dir:REPO'}}}",
    "!import_call {key: resnet.extension.Digits, init: {kwargs: {split: train, transform: print}}}",
]  # fmt: skip
# One text of a whole recipe, and what a hostile one holds in its place.
SECTIONS = [
    ("key: SGD", "key: Optimizer"),
    ("key: SGD, kwargs: {", "key: SGD, kwargs: {params: [1], "),
    ("lr: 0.02", "lr: !import_get {key: torch.utils.data.RandomSampler}"),
    ("lr: 0.02", "lr: os/system"),
    ("key: MultiStepLR", "key: partial"),
    ("key: MultiStepLR", "key: LambdaLR"),
    ("key: MultiStepLR", "key: Counter"),
    ("gamma: 0.1}", "gamma: 0.1, optimizer: x}"),
    ("key: CrossEntropyLoss", "key: Tensor"),
    ("key: CrossEntropyLoss", "key: deprecated"),
    ("reduction: mean", "distance_function: eval"),
    ("key: SimpleLossWrapper", "key: Module"),
    ("key: WeightedSumLoss", "key: AbstractLoss"),
    ("key: SimpleRecipeWrapper", "key: HeadRCNN"),
    ("layer: layer4", "layer: __class__.__init__"),
    ("layer: layer4", "layer: 'x\" + str(1) + \"'"),
    ("output: [layer4]", "output: [forward.__func__.__globals__]"),
    ("forward_proc: forward_batch_only", "forward_proc: os.system"),
    ("requires_grad: false", "sequential: [conv1, +x], adaptations: {x: {key: Parameter, kwargs: {}}}"),
    ("requires_grad: false", "adaptations: {x: {key: Linear, kwargs: {device: EVIL/x}}}"),
    ("requires_grad: false", "wrapper: {key: FullyShardedDataParallel, kwargs: {auto_wrap_policy: x}}"),
    ("requires_grad: false", "wrapper: FullyShardedDataParallel2"),
    ("requires_grad: false", "forward_hock: {}"),
    ("class_or_func: !import_get {key: torch.utils.data.RandomSampler}", "class_or_func: eval"),
    ("class_or_func: !import_get {key: torch.utils.data.RandomSampler}",
     "class_or_func: !import_get {key: torch.float32}"),
    ("num_workers: 0", "num_workers: 0, worker_init_fn: os.system"),
    ("num_workers: 0", "num_workers: 0, multiprocessing_context: EVIL"),
    ("dataset_id: digits/train", "dataset_id: digits/train\n    batch_sampler: {key: TypeVar, kwargs: {name: x}}"),
    ("dataset_id: digits/train", "dataset_id: digits/train\n    dataset_wrapper: {key: eval}"),
    ("dataset_id: digits/train", "dataset_id: digits/train\n    dataset_wrapper: {key: SSKDDatasetWrapper, args: [1]}"),
    ("dataset_id: digits/train", "dataset_id: digits/train\n    collate_fn: eval"),
    ("num_epochs: 2", "num_epochs: 2\n  post_epoch_process: x"),
    ("key: resnet34", "key: get_model"),
    ("key: resnet34", "key: ResNet"),
    ("key: resnet34", "key: _api"),
    ("key: resnet34", "repo_or_dir: REPO, key: resnet34"),
    ("kwargs: {num_classes: 10}, src", "kwargs: {num_classes: 10, norm_layer: eval}, src"),
    ("kwargs: {num_classes: 10}, src", "kwargs: {num_classes: 10, weights: 'http://localhost:1/x'}, src"),
    ("kwargs: {num_classes: 10}, src", "kwargs: {num_classes: 10, weights: EVIL}, src"),
    ("src_ckpt: teacher.pth", "src_ckpt: {a: 1}"),
    ("kwargs: {num_classes: 10}, src", 'kwargs: {"a\\nb": 10}, src'),
    ("digits/val: *data", '"a\\e[31m\\nb": *data'),
    ("key: resnet34", 'key: "a\\nb"'),
    ("dst_ckpt: student.pt", 'dst_ckpt: "/a\\nb.pt"'),
    ("src_ckpt: teacher.pth", "src_ckpt: ~no-such-user/x.pth"),
    ("src_ckpt: teacher.pth", 'src_ckpt: "a\\0b"'),
    ("src_ckpt: teacher.pth", "src_ckpt: " + "n" * 300),
    ("dependencies: [resnet.extension]", "dependencies: [os]"),
    ("dependencies: [resnet.extension]", "dependencies: antigravity"),
    ("dependencies: [resnet.extension]", "dependencies: [resnet.main]"),
    ("dependencies: [resnet.extension]", "dependencies: [[evil, .]]"),
    ("dependencies: [resnet.extension]", "dependencies: [{name: evil}]"),
    ("dependencies: [resnet.extension]", "dependencies: evil"),
    ("dependencies: [resnet.extension]", "dependencies: {evil: 1}"),
    ("dependencies: [resnet.extension]", "dependencies: 5"),
    ("digits/val: *data", "digits/val: !import_get {key: torch.float32}"),
]  # fmt: skip
NESTED = (
    "auxiliary_model_wrapper: {key: Teacher4FactorTransfer, kwargs: {input_module_path: layer4, "
    "paraphraser_kwargs: {k: 0.5, num_input_channels: 512}, uses_decoder: true, paraphraser_ckpt: a.pt, "
    "minimal: MINIMAL}}"
)
PATHS = [
    "/etc/x.pt", "../x.pt", "a/../../x.pt", "~/x.pt", "out/x.pt", "keep.pt", "keep.txt", "x.py", "''",
    "[x.pt]", "conftest.py", ".git/hooks/post-checkout", "3", '"a\\0.pt"', "~nobody-here/x.pt", "archive.pt",
    "keep.pt/x.pt/../../../y.pt",
]  # fmt: skip
# Values of every kind, for a fuzz.
PLAIN = ["null", "-1", "1.5", "{}", "[]", "''", ".nan", "abc", "true", "!!int abc", "{a: 1}", "../x", "a b",
         "*data", "{<<: *data}", "!join [a, /b]", "2024-01-01", "!!binary aaaa", "!!set {a}"]  # fmt: skip
MISTAKES = [
    ("a: [", "line"),
    ("tran: {}", "did you mean 'train'"),
    ("run: {amp: fp7}", "run.*amp|amp"),
    ("run: {chanels_last: true}", "did you mean 'channels_last'"),
    ("root_dir: !!int abc", "line 1 is not YAML: this is no int"),
    ("root_dir: {[a]: b}", "line 1: a list or a mapping cannot be a key"),
    ("root_dir: " + "[" * 3000, "line 1: too much"),
    ("root_dir: !import_call {key: torchvision.transforms.Resise}", "did you mean.*transforms.Resize'"),
    ("root_dir: !import_call {key: torchvision.transforms.Resize, init: {kwargs: {size: 3, antialas: 1}}}",
     "antialas"),
    ("root_dir: !getattr [!import_get {key: torchvision.models.ResNet18_Weights}, IMAGENET1K]",
     "did you mean 'IMAGENET1K_V1'"),
]  # fmt: skip
