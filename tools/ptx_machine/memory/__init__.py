"""Global, shared and tensor memory of a launch, each access checked."""
