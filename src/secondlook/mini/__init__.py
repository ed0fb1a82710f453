"""The miniature: a world whose truth a program can read, and models small enough for a laptop."""
