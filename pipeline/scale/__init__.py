"""Several replicas of the policy that work as one: what is drawn, trained and moved where. See docs/scale.md."""
