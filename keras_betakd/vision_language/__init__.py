"""What the vision-language models of this library have in common."""
