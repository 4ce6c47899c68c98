"""From scratch, for ONE model: pure functions of tensors. Imports nothing of ours.

Arrays end in their logical shape, one letter an axis, one key for the whole package:

    R runs · S steps · B batch · L query position · M key position · D width · H heads · K head width
    F feed-forward width · V vocabulary · E embedding · C candidates/classes · N positions (B and L flattened)
    P parameters (flat)

Scalars and parameter dicts have no suffix. Axes with different roles have different letters even when
they are equally long.
"""
# ruff: noqa: F401 - this file exists to re-export

from stabviz.ops.attention import (
    AttentionMeasures,
    attention_weights,
    causal_mask,
    cosine_attention,
    multi_head_attention,
    padding_mask,
    qk_clip,
    scaled_dot_product_attention,
    scaled_dot_product_attention_grad,
    soft_cap,
    softmax,
    softmax_grad,
)
from stabviz.ops.clipping import clip_adaptive, clip_by_global_norm, clip_by_value, clip_scale, global_norm
from stabviz.ops.contrastive import (
    alignment,
    cpc_scores,
    info_nce,
    info_nce_in_batch,
    info_nce_symmetric,
    uniformity,
)
from stabviz.ops.layers import (
    embedding,
    feed_forward,
    gelu,
    gelu_grad,
    layer_norm,
    layer_norm_grad,
    linear,
    relu,
    rms_norm,
)
from stabviz.ops.losses import (
    CrossEntropyMeasures,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_grad,
    cross_entropy,
    cross_entropy_grad,
    kl_distillation,
    kl_distillation_grad,
    l1_penalty,
    l1_penalty_grad,
    l2_penalty,
    l2_penalty_grad,
    log_softmax,
    log_sum_exp,
    mse_distillation,
    mse_distillation_grad,
)
from stabviz.ops.optimizers import (
    OPTIMIZERS,
    Optimizer,
    UpdateMeasures,
    adam_direction,
    adam_direction_from,
    adam_init,
    adam_step,
    adamw_independent_step,
    adamw_step,
    amsgrad_init,
    amsgrad_step,
    bias_corrected,
    momentum_init,
    momentum_step,
    nesterov_step,
    optimizer_state,
    rmsprop_init,
    rmsprop_step,
    second_moment_ratio,
    sgd_init,
    sgd_step,
    stable_adamw_step,
)
from stabviz.ops.precision import (
    loss_scale_state,
    round_to_bf16,
    round_to_fp16,
    stochastic_round_to_bf16,
    update_loss_scale,
)
from stabviz.ops.schedules import (
    SCHEDULES,
    constant,
    cosine,
    inverse_sqrt,
    linear_decay,
    linear_warmup,
    plateau_state,
    reduce_on_plateau,
    warmup_stable_decay,
)
from stabviz.ops.tiled_attention import tiled_attention
