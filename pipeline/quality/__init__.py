"""How far one bundle is from the model it was made from: the subjects, and what is measured of them."""
