"""Fields that the bodies of several APIs have, as the values of an Ask."""
