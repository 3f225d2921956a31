"""Questions for the suite `hhh`, written for this project: harmful ones, benign ones that look alike, and such that nobody can answer."""
