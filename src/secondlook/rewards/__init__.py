"""Who says how good an image is. Never sees the policy that is trained."""
