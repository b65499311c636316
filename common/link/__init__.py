"""The wire between server and sites: one gRPC stream a site over TLS 1.3, both ends certified.

gRPC reads its list of TLS 1.2 suites once, when it is first used. All our certificates are ECDSA,
so a list that holds only an RSA suite leaves TLS 1.2 nothing to agree on; TLS 1.3 has suites of its
own that the list does not touch. It must stand here, before anything below imports gRPC.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
