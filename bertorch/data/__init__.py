"""From files to packed batches: readers, tokenisation, batching."""
