"""Strict binary messages between coordinator and platform."""
