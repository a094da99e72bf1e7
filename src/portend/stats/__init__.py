"""Statistics that know no model: intervals of stratified rates, tests of exit rates."""
