"""The inputs of Perfusion Train Concept: what each is, its default, and its tooltip."""

from __future__ import annotations

from comfy_api.latest import io

from ..perfusion_core.comfy.backbone import CHECKPOINTING
from ..perfusion_core.comfy.scores import AUTO, score_models
from ..perfusion_core.method.training_settings import KEY_MODES, MAX_VECTORS, TrainingSettings
from .types import ConceptType, CovarianceType

DEFAULTS = TrainingSettings()

# Shown after a click: a first training needs none of them.
ADVANCED = [
    "covariance",
    "embedding_rate",
    "value_rate",
    "train_bias",
    "train_temperature",
    "ema",
    "vectors",
    "resolution",
    "flip",
    "on_cancel",
    "save_every",
    "resume",
    "key_mode",
    "checkpointing",
    "preview_every",
    "validation",
    "select",
    "scorer",
]


def training_inputs() -> list[io.Input]:
    """All inputs, in the order in which graphs that people saved keep their values."""
    return [
        io.Model.Input(
            "model",
            tooltip="The model to train on, without other concepts. LoRAs on it stay in effect.",
        ),
        io.Clip.Input("clip", tooltip="The model's text encoder."),
        io.Vae.Input("vae", tooltip="The model's autoencoder."),
        io.Image.Input(
            "images",
            tooltip="Pictures of the one thing to learn; 4 to 6 are good. Connect "
            "Perfusion Training Pictures, a batch or a list, such as a folder's; sizes may "
            "differ.",
        ),
        io.String.Input(
            "placeholder",
            default="teddy*",
            tooltip="The new word for prompts. One word without spaces, best not an "
            "ordinary word, such as teddy* or <my-teddy>.",
        ),
        io.String.Input(
            "superclass",
            default="teddy",
            tooltip="The ordinary word for what it is, such as teddy, cat or vase. "
            "Training starts from it and keeps to its shape in the picture.",
        ),
        io.Int.Input(
            "steps",
            default=DEFAULTS.steps,
            min=1,
            max=100000,
            tooltip="Training steps. More: closer to the pictures, at last too close.",
        ),
        io.Int.Input(
            "batch_size",
            default=DEFAULTS.batch_size,
            min=1,
            max=1024,
            tooltip="Pictures a step. Lower it when memory runs out.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            tooltip="The same seed gives the same concept.",
        ),
        io.Mask.Input(
            "masks",
            optional=True,
            tooltip="Where the thing is in each picture (white). One for all pictures or "
            "one for each. Keeps backgrounds out of the concept.",
        ),
        CovarianceType.Input(
            "covariance",
            optional=True,
            tooltip="Of Perfusion Covariance. Not connected: made from built-in captions, "
            "once for each text encoder.",
        ),
        io.Float.Input(
            "embedding_rate",
            default=DEFAULTS.embedding_rate,
            min=0.0,
            max=1.0,
            step=0.0001,
            optional=True,
            tooltip="Learning rate of the placeholder's token embedding. 0: it stays its "
            "superclass's, values alone are learned, and the text encoder leaves the GPU: for "
            "those of billions of weights.",
        ),
        io.Float.Input(
            "value_rate",
            default=DEFAULTS.value_rate,
            min=0.0,
            max=10.0,
            step=0.0001,
            optional=True,
            tooltip="Learning rate of the values, relative to the size of each layer's "
            "values. Lower it when training diverges.",
        ),
        io.Float.Input(
            "train_bias",
            default=DEFAULTS.bias,
            min=-1.0,
            max=2.0,
            step=0.01,
            optional=True,
            tooltip="Bias of the gate while training.",
        ),
        io.Float.Input(
            "train_temperature",
            default=DEFAULTS.temperature,
            min=0.01,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Temperature of the gate while training.",
        ),
        io.Float.Input(
            "ema",
            default=DEFAULTS.ema,
            min=0.0,
            max=0.9999,
            step=0.0001,
            optional=True,
            tooltip="EMA decay of the concept's target vector while training; 0.99 averages over "
            "about 100 steps.",
        ),
        io.Int.Input(
            "vectors",
            default=DEFAULTS.vectors,
            min=0,
            max=MAX_VECTORS,
            optional=True,
            tooltip="How many vectors the placeholder takes in a prompt. 0: as many as the "
            "superclass has tokens. More learn more detail and bind more to the pictures.",
        ),
        io.Int.Input(
            "resolution",
            default=0,
            min=0,
            max=4096,
            step=64,
            optional=True,
            tooltip="Side of the square whose area the pictures are brought to, each in "
            "its own shape. 0: the model's usual size; pictures of one size that are no "
            "larger stay as they are.",
        ),
        io.Boolean.Input(
            "flip",
            default=False,
            optional=True,
            tooltip="Learn from the mirror images too. Off for anything with a left and a "
            "right, such as text or a face.",
        ),
        io.String.Input(
            "captions",
            default="",
            multiline=True,
            optional=True,
            tooltip="What each picture shows, one line for each, with the "
            "placeholder where the thing stands: a photo of teddy* on a table. What a "
            "caption names is not learned as part of the concept. Or connect a list with a "
            "text for each picture. Empty: built-in short captions.",
        ),
        io.Combo.Input(
            "on_cancel",
            options=["discard", "keep"],
            default="discard",
            optional=True,
            tooltip="What Cancel does while training. discard: the whole run stops. keep: "
            "training stops, and the graph goes on with what was learned so far.",
        ),
        io.Int.Input(
            "save_every",
            default=0,
            min=0,
            max=100000,
            optional=True,
            tooltip="Save the concept every so many steps too, as a file of its own: "
            "teddy_step50, teddy_step100 ... 0: do not.",
        ),
        ConceptType.Input(
            "resume",
            optional=True,
            tooltip="A concept to go on from, such as a loader's; or a textual inversion, of "
            "Perfusion Import. Of the same superclass.",
        ),
        io.Combo.Input(
            "key_mode",
            options=list(KEY_MODES),
            default=DEFAULTS.key_mode,
            optional=True,
            tooltip="locked: the concept's word takes the layout of its superclass, which "
            "is what Perfusion is about. trained: each layer learns a key of its own too, "
            "to compare with; the file is larger, and the global key lock is not possible. "
            "Which of the two follows prompts better is not decided yet.",
        ),
        io.Combo.Input(
            "checkpointing",
            options=list(CHECKPOINTING),
            default=CHECKPOINTING[0],
            optional=True,
            tooltip="Gradient checkpointing: a fraction of the memory, for a step that "
            "takes about half as long again; the concept is the same. auto: where "
            "training would not fit into the free memory otherwise.",
        ),
        io.Int.Input(
            "preview_every",
            default=50,
            min=0,
            max=100000,
            optional=True,
            tooltip="Paint a validation picture with the concept so far every so many "
            "steps and show it on the node. What is learned does not depend on it. 0: do "
            "not.",
        ),
        io.String.Input(
            "validation",
            default="",
            multiline=True,
            optional=True,
            tooltip="Prompts of validation pictures, one a line, with the "
            "placeholder where the thing stands. The first is the preview. Empty: "
            "built-in ones, in places that training pictures rarely have.",
        ),
        io.Boolean.Input(
            "select",
            default=False,
            optional=True,
            tooltip="Score all validation pictures, every preview_every steps, with a CLIP "
            "model of models/clip_vision (a folder with config.json and "
            "model.safetensors); give out the best step, not the last, with the bias and "
            "temperature that score best.",
        ),
        io.Combo.Input(
            "scorer",
            options=[AUTO, *score_models()],
            default=AUTO,
            optional=True,
            tooltip="The CLIP model that select scores with, of models/clip_vision. auto: "
            "the first by name; the node says which it was. Refresh (R) to find new ones.",
        ),
    ]
