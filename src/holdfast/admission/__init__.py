"""Who may call, and how much: authentication, keys and tokens, limits, and the queue.

    auth, principal     from a request's headers to its caller, and what the caller may do
    access              builds the parts of authentication, and starts and stops them
    failures            what the audit log says of callers who are refused
    keys, key_store, key_rows, key_watcher   keys in memory, in an SQLite file, and how the one follows the other
    worker              calls that block, each under a deadline
    client_tokens       short-lived tokens for browsers, which the gateway signs
    compact             the one spelling of a signed token
    jwt_verifier, jwks  tokens of an external issuer, and the issuer's public keys
    origins             which web pages may call, and CORS
    limiter, queue      the limits of keys and tenants; requests are admitted, wait, or are refused
    command             `holdfast keys`

How limits count is `core.limits`' matter; what runs once it is admitted, `generation`'s.
"""
