"""A model read layer by layer over whole texts, for whoever needs its logits and not the model."""
