"""Token Pooling (Marin et al., WACV 2023): `cluster` the pure clustering functions, `methods` the four methods."""
