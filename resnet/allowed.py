"""What a configuration may name, each with the arguments that it may be given.

Nothing else is imported, called or looked up. A line adds a name (`resnet.trust` says what an argument
may hold); tests hold the names to torchdistill's published configurations, and the arguments to the
signatures. Of `resnet.extension`, every class may be named.
"""

from __future__ import annotations


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """`name: argument argument ...`, one after the other."""
    table: dict[str, list[str]] = {}
    for word in text.split():
        if word.endswith(":"):
            table[word[:-1]] = arguments = []
        else:
            arguments.append(word)
    return {name: tuple(arguments) for name, arguments in table.items()}


def _under(package: str, table: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {f"{package}.{name}": arguments for name, arguments in table.items()}


OWN = "resnet.extension"
DEPENDENCIES = (OWN,)

# -- objects, by their dotted names (`!import_call`)

_OLD_AND_NEW = _table("""
    AugMix: severity mixture_width chain_depth alpha all_ops interpolation fill
    AutoAugment: policy interpolation fill
    CenterCrop: size
    ColorJitter: brightness contrast saturation hue
    Compose: transforms
    ElasticTransform: alpha sigma interpolation fill
    GaussianBlur: kernel_size sigma
    Grayscale: num_output_channels
    Normalize: mean std inplace
    PILToTensor:
    Pad: padding fill padding_mode
    RandAugment: num_ops magnitude num_magnitude_bins interpolation fill
    RandomAdjustSharpness: sharpness_factor p
    RandomAffine: degrees translate scale shear interpolation fill center
    RandomApply: transforms p
    RandomAutocontrast: p
    RandomChoice: transforms p
    RandomCrop: size padding pad_if_needed fill padding_mode
    RandomEqualize: p
    RandomErasing: p scale ratio value inplace
    RandomGrayscale: p
    RandomHorizontalFlip: p
    RandomInvert: p
    RandomOrder: transforms
    RandomPerspective: distortion_scale p interpolation fill
    RandomPosterize: bits p
    RandomResizedCrop: size scale ratio interpolation antialias
    RandomRotation: degrees interpolation expand center fill
    RandomSolarize: threshold p
    RandomVerticalFlip: p
    Resize: size interpolation max_size antialias
    ToPILImage: mode
    ToTensor:
    TrivialAugmentWide: num_magnitude_bins interpolation fill
""")
_OLD = _table("ConvertImageDtype: dtype")
_NEW = _table("""
    GaussianNoise: mean sigma clip
    JPEG: quality
    RGB:
    RandomPhotometricDistort: brightness contrast hue saturation p
    RandomZoomOut: fill side_range p
    ScaleJitter: target_size scale_range interpolation antialias
    ToDtype: dtype scale
    ToImage:
    ToPureTensor:
""")
TRANSFORMS = {
    **_under("torchvision.transforms", {**_OLD_AND_NEW, **_OLD}),
    **_under("torchvision.transforms.v2", {**_OLD_AND_NEW, **_NEW}),
    **_under("timm.data", _table("""
        create_transform: input_size is_training no_aug scale ratio hflip vflip color_jitter
          color_jitter_prob grayscale_prob gaussian_blur_prob auto_augment interpolation
          mean std re_prob re_mode re_count crop_pct crop_mode
    """)),
}  # fmt: skip
DATASETS = _under("torchvision.datasets", _table("""
    CIFAR10: root train transform target_transform download
    CIFAR100: root train transform target_transform download
    Caltech101: root target_type transform target_transform download
    Caltech256: root transform target_transform download
    Country211: root split transform target_transform download
    DTD: root split partition transform target_transform download
    EMNIST: root split train transform target_transform download
    EuroSAT: root transform target_transform download
    FGVCAircraft: root split annotation_level transform target_transform download
    FakeData: size image_size num_classes transform target_transform random_offset
    FashionMNIST: root train transform target_transform download
    Flowers102: root split transform target_transform download
    Food101: root split transform target_transform download
    GTSRB: root split transform target_transform download
    ImageFolder: root transform target_transform allow_empty
    Imagenette: root split size transform target_transform download
    KMNIST: root train transform target_transform download
    MNIST: root train transform target_transform download
    OxfordIIITPet: root split target_types transform target_transform download
    RenderedSST2: root split transform target_transform download
    STL10: root split folds transform target_transform download
    SUN397: root transform target_transform download
    SVHN: root split transform target_transform download
    USPS: root train transform target_transform download
"""))  # fmt: skip
SPLITS = _table("""
    torchdistill.datasets.util.split_dataset: dataset lengths generator_seed sub_splits_configs dataset_id
""")

# -- objects that are named and not called (`!import_get`); torchvision's weights by model are added

SAMPLERS = ("RandomSampler", "SequentialSampler", "DistributedSampler")
GETS = {
    **{f"torch.utils.data.{name}": "sampler" for name in SAMPLERS},
    "torch.utils.data.distributed.DistributedSampler": "sampler",
    **{f"torch.utils.data.sampler.{name}": "sampler" for name in SAMPLERS[:2]},
    **{f"torch.{name}": "dtype" for name in ("float32", "float64", "float16", "bfloat16", "uint8")},
    "torchvision.transforms.InterpolationMode": "interpolation",
    "torchvision.transforms.functional.InterpolationMode": "interpolation",
    "torchvision.transforms.v2.InterpolationMode": "interpolation",
    "torchvision.transforms.AutoAugmentPolicy": "policy",
    "torchvision.transforms.autoaugment.AutoAugmentPolicy": "policy",
    "torchvision.transforms.v2.AutoAugmentPolicy": "policy",
}

# -- registry keys: what torchdistill builds later, by the section that names it

OPTIMIZERS = _table("""
    ASGD: lr lambd alpha t0 weight_decay foreach maximize
    Adadelta: lr rho eps weight_decay foreach maximize
    Adafactor: lr beta2_decay eps d weight_decay foreach maximize
    Adagrad: lr lr_decay weight_decay initial_accumulator_value eps foreach maximize fused
    Adam: lr betas eps weight_decay amsgrad foreach maximize fused
    AdamW: lr betas eps weight_decay amsgrad foreach maximize fused
    Adamax: lr betas eps weight_decay foreach maximize
    NAdam: lr betas eps weight_decay momentum_decay decoupled_weight_decay foreach maximize
    RAdam: lr betas eps weight_decay decoupled_weight_decay foreach maximize
    RMSprop: lr alpha eps weight_decay momentum centered foreach maximize
    Rprop: lr etas step_sizes foreach maximize
    SGD: lr momentum dampening weight_decay nesterov maximize foreach fused
""")
SCHEDULERS = _table("""
    ConstantLR: factor total_iters last_epoch
    CosineAnnealingLR: T_max eta_min last_epoch
    CosineAnnealingWarmRestarts: T_0 T_mult eta_min last_epoch
    CyclicLR: base_lr max_lr step_size_up step_size_down mode gamma scale_mode cycle_momentum
      base_momentum max_momentum last_epoch
    ExponentialLR: gamma last_epoch
    LinearLR: start_factor end_factor total_iters last_epoch
    MultiStepLR: milestones gamma last_epoch
    OneCycleLR: max_lr total_steps epochs steps_per_epoch pct_start anneal_strategy
      cycle_momentum base_momentum max_momentum div_factor final_div_factor three_phase
      last_epoch
    PolynomialLR: total_iters power last_epoch
    ReduceLROnPlateau: mode factor patience threshold threshold_mode cooldown min_lr eps
    StepLR: step_size gamma last_epoch
    poly_lr_scheduler: num_iterations num_epochs power
""")  # fmt: skip
_PATHS = "student_module_path student_module_io teacher_module_path teacher_module_io"
LOSSES = _table(f"""
    BCELoss: reduction
    BCEWithLogitsLoss: reduction
    CosineEmbeddingLoss: margin reduction
    CrossEntropyLoss: ignore_index reduction label_smoothing
    HuberLoss: reduction delta
    KLDivLoss: reduction log_target
    L1Loss: reduction
    MSELoss: reduction
    MultiLabelSoftMarginLoss: reduction
    MultiMarginLoss: p margin reduction
    NLLLoss: ignore_index reduction
    SmoothL1Loss: reduction beta
    SoftMarginLoss: reduction
    ATLoss: at_pairs mode
    AffinityLoss: {_PATHS} reduction
    AltActTransferLoss: feature_pairs margin reduction
    AuxSSKDLoss: module_path module_io reduction
    CCKDLoss: student_linear_path teacher_linear_path kernel_config kernel_params reduction
    CRDLoss: student_norm_module_path student_empty_module_path teacher_norm_module_path
      input_size output_size num_negative_samples num_samples temperature momentum eps
    ChSimLoss: feature_pairs
    DISTLoss: {_PATHS} beta gamma tau eps
    DISTPlusLoss: student_logit_module_path student_logit_module_io teacher_logit_module_path
      teacher_logit_module_io student_feature_module_path student_feature_module_io
      teacher_feature_module_path teacher_feature_module_io beta gamma iota kappa tau eps
    FSPLoss: fsp_pairs
    FTLoss: p reduction paraphraser_path translator_path
    HierarchicalContextLoss: {_PATHS} reduction output_sizes
    KDLoss: {_PATHS} temperature alpha beta reduction
    KTALoss: p q reduction knowledge_translator_path feature_adapter_path
    LogitStdKDLoss: {_PATHS} temperature eps alpha beta reduction
    PADL2Loss: student_embed_module_path teacher_embed_module_path student_embed_module_io
      teacher_embed_module_io module_path module_io eps reduction
    PKTLoss: {_PATHS} eps
    RKDLoss: student_output_path teacher_output_path dist_factor angle_factor reduction
    RegularizationLoss: module_path io_type is_from_teacher p
    SKDDirectionLoss: {_PATHS} tikhonov mode
    SKDInstanceLoss: {_PATHS} temperature mode
    SPKDLoss: student_output_path teacher_output_path reduction
    SRDLoss: student_feature_module_path student_feature_module_io teacher_feature_module_path
      teacher_feature_module_io student_linear_module_path student_linear_module_io
      teacher_linear_module_path teacher_linear_module_io exponent temperature reduction
    SSKDLoss: student_linear_module_path teacher_linear_module_path student_ss_module_path
      teacher_ss_module_path kl_temp ss_temp tf_temp ss_ratio tf_ratio student_linear_module_io
      teacher_linear_module_io student_ss_module_io teacher_ss_module_io loss_weights reduction
    VIDLoss: feature_pairs margin
""")  # fmt: skip
CRITERIA = _table("WeightedSumLoss: model_term sub_terms")
CRITERION_WRAPPERS = _table("""
    DictLossWrapper: weights input target
    SimpleLossWrapper: input target
""")
MODEL_WRAPPERS = _table("""
    Connector4DAB: connectors find_unused_parameters
    EmptyModule:
    Linear4CCKD: input_module linear_kwargs find_unused_parameters
    Linear4CRD: input_module_path linear_kwargs power find_unused_parameters
    SRDModelWrapper: input_module norm_kwargs linear_kwargs find_unused_parameters
    SSWrapper4SSKD: input_module feat_dim ss_module_ckpt freezes_ss_module find_unused_parameters
    Student4FactorTransfer: input_module_path translator_kwargs find_unused_parameters
    Student4ICKD: embeddings
    Student4KTAAD: input_module_path feature_adapter_config affinity_adapter_config
      find_unused_parameters
    Student4KnowledgeReview: abfs sizes find_unused_parameters
    Teacher4FactorTransfer: minimal input_module_path paraphraser_kwargs paraphraser_ckpt
      uses_decoder find_unused_parameters
    VarianceBranch4PAD: input_module feat_dim var_estimator_ckpt find_unused_parameters
    VariationalDistributor4VID: regressors in_channels find_unused_parameters
""")  # fmt: skip
ADAPTATIONS = _table("""
    AdaptiveAvgPool2d: output_size
    AdaptiveMaxPool2d: output_size
    AvgPool2d: kernel_size stride padding ceil_mode count_include_pad
    BatchNorm1d: num_features eps momentum affine track_running_stats
    BatchNorm2d: num_features eps momentum affine track_running_stats
    Conv2d: in_channels out_channels kernel_size stride padding dilation groups bias padding_mode
    ConvReg: num_input_channels num_output_channels kernel_size stride padding uses_relu
    ConvTranspose2d: in_channels out_channels kernel_size stride padding output_padding groups
      bias dilation
    Dropout: p inplace
    Flatten: start_dim end_dim
    GELU: approximate
    GroupNorm: num_groups num_channels eps affine
    Identity:
    LayerNorm: normalized_shape eps elementwise_affine bias
    LeakyReLU: negative_slope inplace
    Linear: in_features out_features bias
    MaxPool2d: kernel_size stride padding dilation ceil_mode
    ReLU: inplace
    Sigmoid:
    Tanh:
    Upsample: size scale_factor mode align_corners
""")
DATASET_WRAPPERS = _table("""
    CRDDatasetWrapper: num_negative_samples mode ratio
    SSKDDatasetWrapper:
""")
BATCH_SAMPLERS = _table("BatchSampler: batch_size drop_last")
FORWARDS = (
    "forward_all", "forward_batch_only", "forward_batch_only_as_kwargs", "forward_batch_target",
    "forward_batch_supp_dict", "forward_batch4sskd",
)  # fmt: skip
EPOCH_PROCESSES = tuple(
    f"default_{when}_epoch_process_{how}_teacher"
    for when in ("pre", "post")
    for how in ("with", "without")
)
# torchdistill's networks for CIFAR; torchvision's classifiers, by their names, are added.
NETWORKS = (
    "densenet", "densenet_bc_k12_depth100", "densenet_bc_k24_depth250", "densenet_bc_k40_depth190",
    "resnet", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202",
    "wide_resnet", "wide_resnet16_8", "wide_resnet28_10", "wide_resnet40_4",
)  # fmt: skip
NETWORK_ARGUMENTS = _table("""
    network: num_classes weights pretrained progress dropout dropout_p drop_rate attention_dropout
      stochastic_depth_prob layer_scale width_mult width_per_group groups zero_init_residual
      replace_stride_with_dilation image_size aux_logits transform_input init_weights bn_size
      growth_rate num_init_features bottleneck depth k memory_efficient
""")["network"]
# What is true or false, wherever it stands (or null, where its owner takes that); nothing else is. The
# `scale` of one transform is a switch, of all others numbers.
SWITCHES = frozenset(
    _table("""
    arguments: affine align_corners all_ops allow_empty amsgrad antialias aux_logits bias
      bottleneck ceil_mode centered clip count_include_pad cycle_momentum decoupled_weight_decay
      download drop_last elementwise_affine expand find_unused_parameters foreach
      freezes_ss_module fused init_weights inplace is_from_teacher is_training log_target maximize
      memory_efficient nesterov no_aug pad_if_needed persistent_workers pin_memory pretrained
      progress replace_stride_with_dilation replacement requires_grad shuffle three_phase
      track_running_stats train transform_input uses_bn uses_decoder uses_label
      uses_relu zero_init_residual
""")["arguments"]
)
EITHER = ("scale",)
MODES = ("anneal_strategy", "mode", "scale_mode", "threshold_mode")  # a schedule's words
