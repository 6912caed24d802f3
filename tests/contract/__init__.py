"""What every log store keeps; see `holdfast.streams.store`. A new store is one more entry of `STORES`."""
