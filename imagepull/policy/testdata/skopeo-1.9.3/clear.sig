-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

{"critical":{"identity":{"docker-reference":"registry.example/team/app:1.0"},"image":{"docker-manifest-digest":"sha256:ef3a0b8e1cb2e64f17653d566237f2fc20cf04cece5062b7dd10a78f9def7ee0"},"type":"atomic container signature"},"optional":{}}
-----BEGIN PGP SIGNATURE-----

iIYEARYIAC4WIQQYxnSvdZ9Vt2e6uG/fjq072ufuggUCawZFpxAcZWRAZXhhbXBs
ZS50ZXN0AAoJEN+OrTva5+6CnW4A/0cTB4E6f9M5iw9b++ICbagyAZU/HoBheCe2
PkzOXVFUAQCaW4q+qLB1ODKmGKds8q8bkLoM1d2ootU9h7UjsxIkAQ==
=SDIz
-----END PGP SIGNATURE-----
