"""The parts of tawin inside other people's trainers. Each module needs its own framework, which the others do not."""
