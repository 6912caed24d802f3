"""How much a caller or a provider may have at a time, and who is next. Without I/O and without a clock.

    rate_limit  amounts within a window of time, and things that are held, for one key or tenant
    fair_queue  the queue of requests that wait, fair between tenants by the tokens that they were served
    gradient    a limit of requests in flight that adapts to a provider's time to first token

Whom a limit is for, and what a refusal says, is `admission`'s; `upstream.capacity` holds a provider's limit.
"""
