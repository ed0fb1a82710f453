"""The miniature's truth: scenes, their words, their pixels, and a reader that tells what is in any
picture."""
