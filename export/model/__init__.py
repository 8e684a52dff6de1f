"""The one decoder that every supported family is a declaration of."""
