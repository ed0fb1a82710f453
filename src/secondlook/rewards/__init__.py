"""Rewards: scores of pictures, by judges that know nothing of the policy that is trained."""
