"""An image autoencoder of diffusers as tokenizer (arXiv:2112.10752); it changes the recipe before
it, whose dynamics read its vectors: --preset flexible cpu vae."""

TOKENIZER = {"model": "image_vae"}

SIZES = {
    "debug": {
        "tokenizer": {
            "model.pretrained": "random",
            "model.tuning": "full",
            "model.channels": 8,
        },
    },
}
