"""Asking a vision-language or language model: behind an endpoint, or in this process."""
