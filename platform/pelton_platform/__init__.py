"""The platform of Pelton: what runs functions, on one machine or many."""
