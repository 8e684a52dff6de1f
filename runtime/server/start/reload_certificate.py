"""Read a renewed certificate while the server runs."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

LOG = logging.getLogger("kvfold.server")


def reload_certificate(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Show these files to connections that come from now on; what it had stays where they are bad.

    Args:
        context: of the server.
        cert: certificate chain, PEM.
        key: its private key, PEM, not encrypted: nobody is there to be asked for a password.
    """
    try:
        # A pair that does not fit would leave the server's own context without a key.
        for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            each.load_cert_chain(cert, key, password="")
    except OSError as error:
        LOG.error(
            "TLS with %s and %s cannot be set up: %s; the certificate from before stays", cert, key, error
        )
    else:
        LOG.info("the certificate of %s", cert)
