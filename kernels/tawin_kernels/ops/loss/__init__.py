"""The group losses: from log-probs (`grpo`), and from hidden states and rewards (`tawin_grpo`)."""
