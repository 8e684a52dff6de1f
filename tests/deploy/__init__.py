"""Tests of what operators install and run: the wheel, the image, the service, the manifests."""
