"""The ops, a folder each: the public function in its `__init__`, its kernels beside it."""
