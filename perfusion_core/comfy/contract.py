"""All of ComfyUI that this pack relies on, as data: what `make watch` looks for in a ComfyUI.

Read from ComfyUI's sources, never imported: so it can be asked of any ComfyUI, and tells what is
gone before anything runs. A test looks for all of it in the ComfyUI at hand, and for what the
pack imports without its being written down here. `protocols.py` has ComfyUI's objects as types,
and is compared with this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

OLDEST = "0.3.52"
# The versions that the tests were run on in whole. On the oldest those fail that need what it has
# not yet itself: Cancel outside of a server, TrainLoraNode as a V3 node, overrides of attention.
SEEN = (OLDEST, "0.3.75", "0.12.1", "0.33.0")


@dataclass(frozen=True)
class Part:
    """A module of ComfyUI, or a class in it, and what of it is relied on.

    Attributes:
        file: the module's path in ComfyUI.
        owner: name of the class; "" for the module itself.
        members: names; of what is called, with those of its parameters that are passed, in order:
            "clone()", "set_attachments(key, attachment)".
        since: the first of `SEEN` that has them; an older one is done without.
    """

    file: str
    owner: str
    members: tuple[str, ...]
    since: str = OLDEST

    @property
    def title(self) -> str:
        """How a message calls it."""
        module = self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return f"{module}.{self.owner}" if self.owner else module


_PATCHER = "comfy/model_patcher.py"
_BASE = "comfy/model_base.py"
_MANAGEMENT = "comfy/model_management.py"
_ENCODERS = "comfy/sd1_clip.py"
_UNET = "comfy/ldm/modules/diffusionmodules/openaimodel.py"
_COSMOS = "comfy/ldm/cosmos/predict2.py"
_WAN = "comfy/ldm/wan/model.py"
_PIXART = "comfy/ldm/pixart"
_LTXV = "comfy/ldm/lightricks/model.py"
_HUNYUAN_DIT = "comfy/ldm/hydit"
_API = "comfy_api/latest/_io.py"

CONTRACT: tuple[Part, ...] = (
    # --- MODEL
    Part(
        _PATCHER,
        "ModelPatcher",
        (
            "__init__(model, load_device, offload_device)",
            "model",
            "model_options",
            "load_device",
            "backup",
            "patches",
            "patches_uuid",
            "wrappers",
            "clone()",
            "get_attachment(key)",
            "set_attachments(key, attachment)",
            "get_wrappers(wrapper_type, key)",
            "add_wrapper_with_key(wrapper_type, key, wrapper)",
            "remove_wrappers_with_key(wrapper_type, key)",
            "remove_additional_models(key)",
            "get_model_object(name)",
            "set_model_compute_dtype(dtype)",
            "add_patches(patches)",
            "add_weight_wrapper(name, function)",
            "model_size()",
            "patch_weight_to_device(key, device_to)",
        ),
    ),
    Part(_PATCHER, "", ("create_model_options_clone(orig_model_options)",)),
    # Dynamic VRAM: its default class, and what is asked of a MODEL there.
    Part(_PATCHER, "", ("CoreModelPatcher",), since="0.12.1"),
    Part(
        _PATCHER,
        "ModelPatcher",
        ("is_dynamic()", "patch_weight_to_device(return_weight)"),
        since="0.12.1",
    ),
    Part(
        _PATCHER, "ModelPatcher", ("clone(disable_dynamic)", "cached_patcher_init"), since="0.33.0"
    ),
    Part("comfy/lora.py", "", ("calculate_weight(patches, weight, key)",)),
    Part(
        "comfy/patcher_extension.py",
        "WrappersMP",
        ("APPLY_MODEL", "CALC_COND_BATCH", "SAMPLER_SAMPLE"),
    ),
    Part("comfy/patcher_extension.py", "WrapperExecutor", ("class_obj",)),
    Part(
        _BASE,
        "BaseModel",
        (
            "diffusion_model",
            "model_sampling",
            "latent_format",
            "manual_cast_dtype",
            "adm_channels",
            "apply_model(x, t, c_concat, c_crossattn, control, transformer_options)",
            "extra_conds()",
            "get_dtype()",
            "load_model_weights(sd, unet_prefix)",
            "process_latent_in(latent)",
        ),
    ),
    Part(_BASE, "BaseModel", ("load_model_weights(assign)",), since="0.12.1"),
    Part(_BASE, "ModelType", ("EPS", "V_PREDICTION")),
    Part(
        "comfy/model_sampling.py",
        "EPS",
        (
            "noise_scaling(sigma, noise, latent_image, max_denoise)",
            "calculate_denoised(sigma, model_output, model_input)",
        ),
    ),
    Part("comfy/model_sampling.py", "ModelSamplingDiscrete", ("percent_to_sigma(percent)",)),
    Part(
        "comfy/latent_formats.py",
        "LatentFormat",
        ("scale_factor", "latent_channels", "process_in(latent)", "process_out(latent)"),
    ),
    Part("comfy/conds.py", "CONDRegular", ("cond", "process_cond(batch_size)")),
    Part("comfy/supported_models.py", "", ("models",)),
    Part(
        "comfy/supported_models_base.py",
        "BASE",
        (
            "unet_config",
            "unet_extra_config",
            "sampling_settings",
            "latent_format",
            "memory_usage_factor",
            "get_model(state_dict, prefix, device)",
            "inpaint_model()",
            "model_type(state_dict, prefix)",
            "set_inference_dtype(dtype, manual_cast_dtype)",
        ),
    ),
    Part("comfy/supported_models_base.py", "ClipTarget", ("__init__(tokenizer, clip)",)),
    # --- its network
    Part(_UNET, "UNetModel", ("input_blocks", "middle_block", "output_blocks")),
    Part(_UNET, "ResBlock", ("forward(x, emb)",)),
    Part(
        "comfy/ldm/modules/attention.py",
        "BasicTransformerBlock",
        ("attn2", "forward(x, context, transformer_options)"),
    ),
    Part(
        "comfy/ldm/modules/attention.py",
        "CrossAttention",
        ("heads", "to_q", "to_k", "to_v", "forward(x, context, value)"),
    ),
    Part(
        _COSMOS,
        "Attention",
        ("n_heads", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "forward(x, context)"),
    ),
    Part(_COSMOS, "Block", ("cross_attn", "forward(x_B_T_H_W_D, emb_B_T_D, crossattn_emb)")),
    Part(_COSMOS, "MiniTrainDIT", ("blocks",)),
    Part(
        _WAN,
        "WanSelfAttention",
        ("num_heads", "q", "k", "v", "norm_q", "norm_k"),
    ),
    Part(_WAN, "WanT2VCrossAttention", ("forward(x, context)",)),
    Part(_WAN, "WanAttentionBlock", ("cross_attn", "forward(x, e, freqs, context)")),
    Part(_WAN, "WanModel", ("blocks", "out_dim", "text_embedding")),
    Part(
        f"{_PIXART}/blocks.py",
        "MultiHeadCrossAttention",
        ("num_heads", "q_linear", "kv_linear", "forward(x, cond)"),
    ),
    Part(f"{_PIXART}/blocks.py", "CaptionEmbedder", ("y_proj",)),
    Part(f"{_PIXART}/pixartms.py", "PixArtMSBlock", ("cross_attn", "forward(x, y, t)")),
    Part(f"{_PIXART}/pixartms.py", "PixArtMS", ("blocks", "y_embedder", "ar_embedder")),
    Part(
        _LTXV,
        "CrossAttention",
        ("heads", "to_q", "to_k", "to_v", "q_norm", "k_norm", "forward(x, context, mask)"),
    ),
    Part(_LTXV, "BasicTransformerBlock", ("attn2", "forward(x, context, attention_mask)")),
    Part(_LTXV, "PixArtAlphaTextProjection", ("linear_1", "linear_2", "forward(caption)")),
    Part(
        f"{_HUNYUAN_DIT}/attn_layers.py",
        "CrossAttention",
        ("num_heads", "q_proj", "kv_proj", "q_norm", "k_norm", "forward(x, y, freqs_cis_img)"),
    ),
    Part(f"{_HUNYUAN_DIT}/models.py", "HunYuanDiTBlock", ("attn2", "forward(x, c, text_states)")),
    Part(
        f"{_HUNYUAN_DIT}/models.py",
        "HunYuanDiT",
        (
            *("blocks", "mlp_t5", "text_embedding_padding", "text_len"),
            *("text_states_dim", "text_states_dim_t5"),
        ),
    ),
    Part("comfy/ldm/anima/model.py", "Anima", ("llm_adapter",), since="0.12.1"),
    Part(
        "comfy/ldm/anima/model.py",
        "LLMAdapter",
        ("forward(source_hidden_states, target_input_ids)",),
        since="0.12.1",
    ),
    Part(
        "comfy/text_encoders/anima.py",
        "AnimaTokenizer",
        ("qwen3_06b", "t5xxl"),
        since="0.12.1",
    ),
    Part("comfy/text_encoders/anima.py", "AnimaTEModel", (), since="0.12.1"),
    Part("comfy/ops.py", "", ("disable_weight_init",)),
    # --- CLIP and VAE
    Part(
        "comfy/sd.py",
        "CLIP",
        (
            "__init__(target, model_options)",
            "patcher",
            "cond_stage_model",
            "tokenizer",
            "layer_idx",
            "clone()",
            "tokenize(text)",
            "encode_from_tokens_scheduled(tokens)",
            "load_sd(sd)",
        ),
    ),
    Part("comfy/sd.py", "CLIP", ("__init__(disable_dynamic)",), since="0.33.0"),
    Part(
        "comfy/sd.py",
        "VAE",
        ("__init__(sd)", "patcher", "encode(pixel_samples)", "decode(samples_in)"),
    ),
    Part(
        "comfy/sd.py",
        "",
        ("load_lora_for_models(model, clip, lora, strength_model, strength_clip)",),
    ),
    Part(
        _ENCODERS,
        "SDTokenizer",
        (
            "__init__(max_length, embedding_directory, embedding_size, embedding_key, "
            "tokenizer_data)",
            "tokenizer",
            "embedding_size",
            "tokens_start",
            "start_token",
            "end_token",
            "tokenizer_adds_end_token",
            "inv_vocab",
            "max_length",
            "max_word_length",
            "pad_to_max_length",
            "pad_tokens(tokens, amount)",
            "tokenize_with_weights(text, return_word_ids)",
            "untokenize(token_weight_pair)",
        ),
    ),
    Part(_ENCODERS, "SD1Tokenizer", ("__init__(embedding_directory, tokenizer_data, tokenizer)",)),
    Part(
        _ENCODERS,
        "SDClipModel",
        (
            "__init__(device, max_length, textmodel_json_config, dtype, "
            "return_projected_pooled, model_options)",
            "transformer",
            "num_layers",
            "max_length",
        ),
    ),
    Part(
        _ENCODERS,
        "SD1ClipModel",
        (
            "__init__(device, dtype, model_options, clip_model)",
            "reset_clip_options()",
            "set_clip_options(options)",
            "encode_token_weights(token_weight_pairs)",
        ),
    ),
    Part("comfy/clip_model.py", "CLIPTextModel", ("get_input_embeddings()",)),
    # --- devices, memory, sampling
    Part(
        _MANAGEMENT,
        "",
        (
            "OOM_EXCEPTION",
            "InterruptProcessingException",
            "free_memory(memory_required, device)",
            "get_free_memory(dev)",
            "get_torch_device()",
            "interrupt_current_processing(value)",
            "load_models_gpu(models, memory_required, force_full_load)",
            "processing_interrupted()",
            "pytorch_attention_flash_attention()",
            "should_use_bf16(device)",
            "throw_exception_if_processing_interrupted()",
            "unet_dtype(model_params, supported_dtypes)",
            "unet_offload_device()",
            "xformers_enabled()",
        ),
    ),
    Part(_MANAGEMENT, "", ("is_oom(e)",), since="0.33.0"),
    Part(
        "comfy/sample.py",
        "",
        (
            "fix_empty_latent_channels(model, latent_image)",
            "prepare_noise(latent_image, seed, noise_inds)",
            "sample(model, noise, steps, cfg, sampler_name, scheduler, positive, negative, "
            "latent_image, callback, disable_pbar, seed)",
        ),
    ),
    Part(
        "comfy/samplers.py", "", ("calc_cond_batch(model, conds, x_in, timestep, model_options)",)
    ),
    Part("comfy/samplers.py", "Sampler", ("sample()",)),
    Part("comfy/samplers.py", "KSampler", ("SAMPLERS", "SCHEDULERS")),
    Part(
        "comfy/samplers.py",
        "CFGGuider",
        (
            "inner_model",
            "conds",
            "inner_set_conds(conds)",
            "predict_noise(x, timestep, model_options, seed)",
            "sample(noise, latent_image, sampler, sigmas, disable_pbar, seed)",
        ),
    ),
    Part(
        "comfy/utils.py",
        "",
        ("PROGRESS_BAR_ENABLED", "set_progress_bar_enabled(enabled)"),
    ),
    Part(
        "comfy/utils.py",
        "ProgressBar",
        ("__init__(total)", "update_absolute(value, total, preview)"),
    ),
    Part("latent_preview.py", "", ("get_previewer(device, latent_format)",)),
    Part(
        "latent_preview.py",
        "LatentPreviewer",
        ("decode_latent_to_preview_image(preview_format, x0)",),
    ),
    # --- folders, server, queue
    Part(
        "folder_paths.py",
        "",
        (
            "models_dir",
            "folder_names_and_paths",
            "add_model_folder_path(folder_name, full_folder_path)",
            "get_filename_list(folder_name)",
            "get_folder_paths(folder_name)",
            "get_full_path(folder_name, filename)",
        ),
    ),
    Part(
        "server.py",
        "PromptServer",
        (
            "instance",
            "prompt_queue",
            "routes",
            "client_id",
            "on_prompt_handlers",
            "add_on_prompt_handler(handler)",
            "send_sync(event, data, sid)",
            "send_progress_text(text, node_id)",
        ),
    ),
    Part(
        "execution.py",
        "PromptQueue",
        ("get_current_queue_volatile()", "get_tasks_remaining()", "task_counter"),
    ),
    Part("comfy_execution/utils.py", "", ("get_executing_context()",)),
    Part("comfy_execution/utils.py", "ExecutionContext", ("prompt_id", "node_id")),
    Part("comfy_execution/graph_utils.py", "ExecutionBlocker", ("__init__(message)",)),
    # --- the V3 API of nodes
    Part("comfy_api/latest/__init__.py", "", ("ComfyExtension", "io", "ui")),
    Part("comfy_api/latest/__init__.py", "ComfyExtension", ("get_node_list()",)),
    Part(
        _API,
        "",
        (
            *("ComfyNode", "Custom", "Hidden", "Input", "MultiType", "NodeOutput", "NumberDisplay"),
            *("Boolean", "Clip", "Combo", "Conditioning", "Float", "Image", "Int", "Latent"),
            *("Mask", "Model", "String", "Vae"),
        ),
    ),
    Part(_API, "Input", ("extra_dict",)),
    Part(
        _API,
        "Schema",
        (
            "node_id",
            "display_name",
            "category",
            "description",
            "inputs",
            "outputs",
            "hidden",
            "is_input_list",
            "is_output_node",
        ),
    ),
    Part("comfy_api/latest/_ui.py", "", ("PreviewImage", "PreviewMask", "PreviewText")),
    # --- what the lab compares with
    Part(
        "comfy_extras/nodes_train.py",
        "TrainLoraNode",
        ("define_schema()", "execute()"),
        since="0.3.75",
    ),
    Part("comfy/taesd/taesd.py", "TAESD", ("taesd_encoder", "taesd_decoder")),
)

# Name of ComfyUI's config class -> id of the family that its models are of.
FITS: Mapping[str, str] = MappingProxyType(
    {
        "SD15": "sd1",
        "SD15_instructpix2pix": "sd1",
        "SD20": "sd2",
        "SD21UnclipL": "sd2",
        "SD21UnclipH": "sd2",
        "SDXL": "sdxl",
        "SDXL_instructpix2pix": "sdxl",
        "SSD1B": "sdxl",
        "Segmind_Vega": "sdxl",
        "KOALA_700M": "sdxl",
        "KOALA_1B": "sdxl",
        "CosmosT2IPredict2": "cosmos2",
        "CosmosI2VPredict2": "cosmos2",
        "Anima": "anima",
        "WAN21_T2V": "wan21",
        "WAN21_I2V": "wan21",
        "WAN21_FunControl2V": "wan21",
        "WAN22_T2V": "wan22_5b",
        "LTXV": "ltxv",
        "HunyuanDiT": "hunyuan_dit",
        "HunyuanDiT1": "hunyuan_dit",
        "PixArtAlpha": "pixart_alpha",
        "PixArtSigma": "pixart_sigma",
    }
)

# Classes of `families.REFUSED` -> the first of `SEEN` that has them.
SINCE: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("Hunyuan3Dv2_1", "HunyuanImage21"), "0.3.75"),
        **dict.fromkeys(("WAN21_HuMo", "WAN22_Animate", "WAN22_S2V"), "0.3.75"),
        **dict.fromkeys(("ACEStep15", "Kandinsky5", "LTXAV"), "0.12.1"),
        **dict.fromkeys(
            (
                *("CogVideoX", "DepthAnything3", "ErnieImage", "HiDreamO1", "Ideogram4"),
                *("JoyImage", "Krea2", "Lens", "MiniMaxH3", "MiniMaxMusic3", "PiD"),
                *("PixelDiTT2I", "RT_DETR_v4", "SAM3", "SeedVR2", "StableAudio3", "Trellis2"),
                *("TripoSplat", "WAN21_CausalAR", "WAN21_FlowRVS", "WAN21_SCAIL"),
                *("WAN22_WanDancer", "WAN_Animate2"),
            ),
            "0.33.0",
        ),
    }
)


@dataclass(frozen=True)
class Moved:
    """What of all this is otherwise in a newer ComfyUI, and how the pack is right in both.

    Attributes:
        since: the first of `SEEN` that has it so.
        what: what moved.
        here: what the pack does about it, and where.
    """

    since: str
    what: str
    here: str


MOVED: tuple[Moved, ...] = (
    Moved(
        "0.3.75",
        "TrainLoraNode is a node of the V3 API",
        "the lab trains LoRAs from there on (lab/rivals/lora.py)",
    ),
    Moved(
        "0.3.75",
        "cross-attention takes transformer_options",
        "nothing: the edit is on the projections, whose calls are passed on as they come",
    ),
    Moved(
        "0.12.1",
        "tokens are moved to execution_device, an option of the text encoder",
        "the option is set; an older encoder passes it over (comfy/encoding.py)",
    ),
    Moved(
        "0.12.1",
        "a model object notes the dtypes of its network (archive_model_dtypes)",
        "tests that make one without a network leave that out (tests/comfyui/test_families.py)",
    ),
    Moved(
        "0.12.1",
        "TrainLoraNode: bucket_mode, bypass_mode; three outputs in place of four; its bar moves "
        "once a pass, not once a step",
        "inputs are filled from the node's own schema, the LoRA is found by its type, steps are "
        "counted at the optimiser (lab/rivals/lora.py)",
    ),
    Moved(
        "0.12.1",
        "an empty latent is fitted by its downscale ratio as well (fix_empty_latent_channels)",
        "nothing: only finished latents are given to it",
    ),
    Moved(
        "0.33.0",
        "dynamic VRAM is the default on NVIDIA cards: CoreModelPatcher is ModelPatcherDynamic, "
        "weights lie on no device and in the dtype of the file, linear layers are made without any",
        "training takes weights of its own (comfy/weights.py), sampling needs nothing; the demo "
        "model casts its weights itself and takes the class that core loaders take (demo/model.py)",
    ),
    Moved(
        "0.33.0",
        "clone(disable_dynamic, force_deepcopy) and deepclone_multigpu load the weights again, by "
        "cached_patcher_init; TrainLoraNode, TorchCompileModel and the hooks of CLIP do so",
        "the demo model sets it (demo/model.py); clones keep attachments and wrappers of their own "
        "accord",
    ),
    Moved(
        "0.33.0",
        "a prompt with hooks is sampled on a copy without dynamic VRAM (get_non_dynamic_delegate)",
        "layers are looked up in the network that a pass comes to (comfy/stack.py)",
    ),
    Moved(
        "0.33.0",
        "with several GPUs prompts run in threads, on a copy of the model each",
        "what passes share is under a lock (comfy/stack.py); maps use one GPU alone "
        "(comfy/attention_recorder.py)",
    ),
    Moved(
        "0.33.0",
        "is_oom knows errors of a GPU that are not of the class OOM_EXCEPTION",
        "it is asked where it is there; CUDA's code is known besides (comfy/memory.py)",
    ),
    Moved(
        "0.33.0",
        "TrainLoraNode: quantized_backward, checkpoint_depth, offloading; it trains a copy",
        "inputs are filled from the node's own schema (lab/rivals/lora.py)",
    ),
    Moved(
        "0.33.0",
        "a UNet may have a head that reads poses (heatmap_head)",
        "such a model is refused (families.REFUSED_PARTS)",
    ),
    Moved(
        "0.33.0",
        "eighteen classes of models, and SAM 3.1, MageFlow, Boogu and more by inheritance",
        "each is refused with a reason of its own code (families.REFUSED)",
    ),
    Moved(
        "0.33.0",
        "Anima's adapter runs at every step of a training; in sampling once a prompt, as before",
        "the pack's training runs it when it encodes a prompt (families/anima.py)",
    ),
    Moved(
        "0.33.0",
        "queries and keys are turned by comfy-kitchen (rms_rope_split_half), which has no "
        "backward, and Qwen3 adds into what it read (torch.add, out)",
        "plain torch, while training (comfy/differentiable.py)",
    ),
)
